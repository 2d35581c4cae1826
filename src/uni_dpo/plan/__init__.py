"""What a training will take, from its configuration, its data and the model's config.json: no GPU, no weights."""
