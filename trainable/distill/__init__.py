"""What the student learns from the teacher: one file a method, and the module with all that is trained."""
