"""What is kept and said of a training of pairs while it runs, whichever library trains."""
