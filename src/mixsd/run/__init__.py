"""The run folder, what every stage of a run holds, and the engines that carry its work."""
