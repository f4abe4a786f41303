//! CEL expressions over Envoy's attributes (Envoy docs: intro/arch_overview/advanced/attributes): access log filters and
//! operators, RBAC conditions, Istio's metric dimensions.
//!
//! An expression is compiled once; an evaluation builds only the attribute groups that it names. An error (an attribute
//! or a map key that is not there, a type mismatch) yields no value, and each use says what that means, as in Envoy.

mod attributes;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};

use super::format::FormatContext;

/// Why an expression does not compile.
#[derive(Debug, thiserror::Error)]
#[error("CEL expression `{expression}`: {reason}")]
pub struct CelError {
    pub expression: String,
    pub reason: String,
}

/// A compiled expression.
pub struct Expression {
    program: Program,
    /// The attribute groups that it reads.
    roots: Vec<&'static str>,
}

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

impl Expression {
    /// Compiles `text`.
    pub fn compile(text: &str) -> Result<Expression, CelError> {
        let program =
            ENV.compile(text).map_err(|e| CelError { expression: text.to_owned(), reason: e.to_string() })?;
        let references = program.references();
        let roots = attributes::ROOTS.iter().copied().filter(|r| references.has_variable(r)).collect();
        Ok(Expression { roots, program })
    }

    /// The value over a stream; `None` on an evaluation error.
    pub fn evaluate(&self, ctx: &FormatContext<'_>) -> Option<Value> {
        let mut context = Context::with_env(ENV.clone());
        for root in &self.roots {
            // An attribute that the stream does not have stays undeclared: reading it is an error, as in Envoy.
            if let Some(value) = attributes::root(root, ctx) {
                context.add_variable_from_value(*root, value);
            }
        }
        self.program.execute(&context).ok()
    }

    /// Whether the value is `true`; an error or another type is not.
    pub fn is_true(&self, ctx: &FormatContext<'_>) -> bool {
        matches!(self.evaluate(ctx), Some(Value::Bool(true)))
    }

    /// The value as Envoy prints it; `None` on an error.
    pub fn text(&self, ctx: &FormatContext<'_>) -> Option<String> {
        Some(print(&self.evaluate(ctx)?))
    }
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expression").field("roots", &self.roots).finish_non_exhaustive()
    }
}

fn print(value: &Value) -> String {
    match value {
        Value::String(s) => s.to_string(),
        Value::Int(n) => n.to_string(),
        Value::UInt(n) => n.to_string(),
        Value::Float(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::Null => String::new(),
        Value::Map(_) => "CelMap value".to_owned(),
        Value::List(_) => "CelList value".to_owned(),
        _ => String::new(),
    }
}

thread_local! {
    /// Compiled expressions of operators and filters by text; `None` for one that does not compile.
    static COMPILED: RefCell<HashMap<Arc<str>, Option<Rc<Expression>>>> = RefCell::default();
}

/// The compiled form of `text`, compiled once per worker.
pub fn compiled(text: &Arc<str>) -> Option<Rc<Expression>> {
    COMPILED.with_borrow_mut(|all| {
        if let Some(found) = all.get(text) {
            return found.clone();
        }
        let fresh = Expression::compile(text).ok().map(Rc::new);
        all.insert(text.clone(), fresh.clone());
        fresh
    })
}

/// `%CEL(expression)%`: appends the value's text; `None` on an error.
pub fn write(text: &Arc<str>, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<()> {
    let value = compiled(text)?.evaluate(ctx)?;
    out.extend_from_slice(print(&value).as_bytes());
    Some(())
}

/// Whether the expression holds over a stream.
pub fn matches(text: &Arc<str>, ctx: &FormatContext<'_>) -> bool {
    compiled(text).is_some_and(|e| e.is_true(ctx))
}

#[cfg(test)]
mod tests;
