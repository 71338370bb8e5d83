"""What others do, run beside ours."""
