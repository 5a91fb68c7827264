"""Files that people and attackers send, made by script: `tests.hostile.files.FILES` holds all of
them.
"""
