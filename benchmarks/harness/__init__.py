"""What all sessions share: child processes, rounds in turn, pauses of the machine, results as table, JSON and picture."""
