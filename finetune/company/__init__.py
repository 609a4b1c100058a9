"""A company example: a small open model learns to answer the questions a company is asked, on this machine's CPU."""
