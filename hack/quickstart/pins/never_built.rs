// Cargo wants a target; nothing here is built.
