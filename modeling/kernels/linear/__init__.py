"""linear: see reference.py for the specification."""
