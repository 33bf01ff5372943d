"""`herl score`: rubrics applied to responses that are already there, without any model."""
