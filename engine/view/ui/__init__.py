"""`flywheel ui`: a page of this machine to look at runs, rows and answers with."""
