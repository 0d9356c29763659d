"""What people and files see: Messages, Answers, Verdicts, Groups, and every format they come in. No torch."""
