"""Pictures of plain values in one style. Both modules bring matplotlib in: whoever may not need a picture imports them where it draws."""
