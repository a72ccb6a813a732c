"""What people look at: records and tables of results, timelines, pictures, text, and validation against closed forms."""
