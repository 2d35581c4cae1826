"""The whole chain on the embedded tiny model and real images: no GPU, no download."""
