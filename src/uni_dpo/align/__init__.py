"""From images and questions to a better model: every stage is one of this program's own commands."""
