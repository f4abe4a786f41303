//! Header mutations of a route configuration, virtual host, route and weighted cluster, in Envoy's order: most specific level
//! first, or last with `most_specific_header_mutations_wins`.

use std::cell::RefCell;

use crate::config::format::Part;
use crate::config::route::Route;
use crate::config::route::{
    AppendAction, HeaderAdd, HeaderMutations, RouteConfig, VirtualHost, WeightedCluster,
};
use crate::head::{Head, HeaderId, HeaderName};
use crate::stream_info::StreamInfo;
use crate::telemetry::format::{self, FormatContext};

/// The levels that apply to a request.
#[derive(Clone, Copy, Debug)]
pub struct Levels<'a> {
    pub config: &'a RouteConfig,
    pub vhost: &'a VirtualHost,
    pub route: &'a Route,
    pub weighted: Option<&'a WeightedCluster>,
}

impl<'a> Levels<'a> {
    fn ordered(self) -> impl Iterator<Item = &'a HeaderMutations> {
        let mut levels = [
            self.weighted.map(|w| &w.mutations),
            Some(&self.route.mutations),
            Some(&self.vhost.mutations),
            Some(&self.config.mutations),
        ];
        if self.config.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().flatten()
    }

    /// Whether any level changes anything.
    pub fn is_empty(self) -> bool {
        self.ordered().all(HeaderMutations::is_empty)
    }

    /// Applies the request mutations.
    pub fn request(self, head: &mut Head, info: &StreamInfo) {
        for m in self.ordered() {
            remove(head, &m.request_remove);
            add(head, &m.request_add, |f, head| FormatContext::request(head, info).append(f));
        }
    }

    /// Applies the response mutations.
    pub fn response(self, request: &Head, head: &mut Head, info: &StreamInfo) {
        for m in self.ordered() {
            remove(head, &m.response_remove);
            add(head, &m.response_add, |f, head| FormatContext::response(request, head, info).append(f));
        }
    }
}

/// Removes headers.
pub fn remove(head: &mut Head, names: &[HeaderName]) {
    for n in names {
        head.remove_name(n);
    }
}

thread_local! {
    /// Formatted values, reused from request to request.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Applies a list of additions; `eval` evaluates a format over the head as it is by then.
pub fn add(head: &mut Head, list: &[HeaderAdd], mut eval: impl FnMut(FormatCall<'_>, &Head)) {
    // As Envoy's evaluator: what overwrites goes first, whatever its place in the list.
    let overwrites = |a: &HeaderAdd| {
        matches!(a.action, AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists)
    };
    let ordered = list.iter().filter(|a| overwrites(a)).chain(list.iter().filter(|a| !overwrites(a)));
    for a in ordered {
        let mut value = SCRATCH.take();
        value.clear();
        if let [Part::Literal(text)] = &a.value.parts[..] {
            value.extend_from_slice(text.as_bytes());
        } else {
            eval(FormatCall { format: &a.value, out: &mut value }, head);
        }
        put(head, a, &value);
        SCRATCH.replace(value);
    }
}

/// A format and where its text goes.
#[derive(Debug)]
pub struct FormatCall<'a> {
    pub format: &'a crate::config::format::Format,
    pub out: &'a mut Vec<u8>,
}

trait Append {
    fn append(&self, call: FormatCall<'_>);
}

impl Append for FormatContext<'_> {
    fn append(&self, call: FormatCall<'_>) {
        format::write(call.format, self, call.out);
    }
}

/// Envoy replaces the headers it knows where they stand, and others by removing them and adding one at the end.
fn overwrite(head: &mut Head, name: &HeaderName, value: &[u8]) {
    if name.id() == HeaderId::Other {
        head.remove_name(name);
        head.append_name(name, value);
    } else {
        head.set_name(name, value);
    }
}

fn put(head: &mut Head, a: &HeaderAdd, value: &[u8]) {
    if value.is_empty() && !a.keep_empty {
        return;
    }
    match a.action {
        AppendAction::AppendIfExistsOrAdd => head.append_name(&a.name, value),
        AppendAction::AddIfAbsent if head.get_name(&a.name).is_none() => head.append_name(&a.name, value),
        AppendAction::OverwriteIfExistsOrAdd => overwrite(head, &a.name, value),
        AppendAction::OverwriteIfExists if head.get_name(&a.name).is_some() => {
            overwrite(head, &a.name, value);
        }
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
    }
}
