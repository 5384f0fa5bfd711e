"""The full pass, one module a step; `steps.py` tells the story in order."""
