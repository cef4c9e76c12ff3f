//! The data synthesis workflow: instruct, retrieve, summarise, respond, assemble.
