"""mixsd: put new knowledge into language models without breaking them."""
