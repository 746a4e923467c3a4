"""What the commands have in common: whom they ask, and how they show what they were told."""
