"""Search spaces, one a file: ``jobs/sweep.py --space NAME`` calls the function NAME of the file NAME.py."""
