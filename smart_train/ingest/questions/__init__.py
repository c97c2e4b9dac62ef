"""Make queries for pages: from the documents' own words, or with a chat model."""
