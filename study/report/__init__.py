"""What a person sees of a study: its progress while it runs, and its leaderboard."""
