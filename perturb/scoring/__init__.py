"""The score of stages on one model: what they do alone, and in every order."""
