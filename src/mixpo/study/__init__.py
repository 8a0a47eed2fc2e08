"""Studies: variants of a recipe, compared over seeds on the same questions; stages that are equal are made once."""
