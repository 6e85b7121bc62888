"""What was scored: in MLflow, in tables, compared; and who is champion."""
