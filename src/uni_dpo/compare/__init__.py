"""What a model answered before training and what it answers now, side by side."""
