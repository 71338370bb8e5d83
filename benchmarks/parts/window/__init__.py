"""A browser walks `flywheel ui` over the quickstart: what it sees is held against the files."""
