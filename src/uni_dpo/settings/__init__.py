"""What users may set: read and checked before anything heavy is imported."""
