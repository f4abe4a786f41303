//! The proxy's own node, set once from the bootstrap: its labels stand in Istio's metrics, in spans and in CEL's `node`.

use std::sync::OnceLock;

use crate::config::bootstrap::Node;

static NODE: OnceLock<Node> = OnceLock::new();

/// Keeps the node for the life of the process; later calls change nothing.
pub fn set(node: Node) {
    // A second bootstrap in one process (tests) keeps the first node: it is a constant to those who read it.
    let _ = NODE.set(node);
}

/// The node; an empty one before `set`.
pub fn get() -> &'static Node {
    static EMPTY: OnceLock<Node> = OnceLock::new();
    NODE.get().unwrap_or_else(|| EMPTY.get_or_init(Node::default))
}
