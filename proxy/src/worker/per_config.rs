//! Runtime objects of a worker by the configuration that they are made of: built at the first use, gone with it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

/// The table.
#[derive(Debug)]
pub struct PerConfig<C, R>(RefCell<HashMap<usize, (Weak<C>, Rc<R>)>>);

impl<C, R> Default for PerConfig<C, R> {
    fn default() -> Self {
        PerConfig(RefCell::default())
    }
}

impl<C, R> PerConfig<C, R> {
    /// The object for `config`. An `R` that holds its `Arc<C>` keeps its entry until nothing else uses either.
    pub fn get_or_build(&self, config: &Arc<C>, build: impl FnOnce() -> R) -> Rc<R> {
        let key = Arc::as_ptr(config) as usize;
        if let Some((weak, r)) = self.0.borrow().get(&key) {
            // The address may have been used again by another configuration.
            if std::ptr::eq(weak.as_ptr(), Arc::as_ptr(config)) && weak.strong_count() > 0 {
                return r.clone();
            }
        }
        let built = Rc::new(build());
        let mut all = self.0.borrow_mut();
        // At most one strong reference left: the object's own. Nobody can ask for it any more.
        all.retain(|_, (weak, r)| weak.strong_count() > 1 || Rc::strong_count(r) > 1);
        all.insert(key, (Arc::downgrade(config), built.clone()));
        built
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_live_as_long_as_their_configuration() {
        let table: PerConfig<u32, Arc<u32>> = PerConfig::default();
        let one = Arc::new(1);
        let a = table.get_or_build(&one, || one.clone());
        let again = table.get_or_build(&one, || unreachable!());
        assert!(Rc::ptr_eq(&a, &again));
        drop((a, again, one));
        let two = Arc::new(2);
        table.get_or_build(&two, || two.clone());
        assert_eq!(table.0.borrow().len(), 1);
    }
}
