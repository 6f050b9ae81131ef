"""Where growth is noticed: what comes in is a table or a repository, what goes out is how far it goes now; nothing is written there."""
