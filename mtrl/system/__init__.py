"""The machine: its cores, processes beside this one, and memory that they share. Knows nothing of learning."""
