"""Garbage, thrown at every door that something foreign comes through (`make fuzz`).

A target is a file here: `seeds()` gives good inputs, `attempt(data, folder)` does with one what Flywheel does, and may raise
`FlywheelError` and nothing else. Cases are made by changing seeds and what is in `corpus/TARGET`, and run in a process with a bound
on memory and on the time for each.
"""
