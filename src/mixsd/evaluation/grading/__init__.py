"""What a reply to a published benchmark answers, and whether that is right. Text only; no model, no benchmark file."""
