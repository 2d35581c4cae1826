"""What training did to every pair: one row each time that a pair is trained on or evaluated, and what the rows say."""
