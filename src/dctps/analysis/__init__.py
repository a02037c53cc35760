"""What run folders say: rows, means over seeds, figures and tables. matplotlib is imported when needed."""
