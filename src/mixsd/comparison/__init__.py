"""Several runs side by side: may they be compared, what differs, and how it is shown."""
