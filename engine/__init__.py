"""The spine: recipe, plan, execution, store, lineage, views, command line. Knows no model, no text rule and no room.

From Python, import `flywheel`.
"""
