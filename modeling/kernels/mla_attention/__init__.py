"""mla_attention: see reference.py for the specification."""
