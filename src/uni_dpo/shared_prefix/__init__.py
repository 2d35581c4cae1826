"""A preference pair as one sequence: prompt + chosen answer + rejected answer, images and prompt only once."""
