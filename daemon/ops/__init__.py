"""What people watch: status, health, notices."""
