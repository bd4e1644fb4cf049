"""The scheduler, pure: events with their time go in, commands come out."""
