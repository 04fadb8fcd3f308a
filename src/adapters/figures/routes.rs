//! Requests by named route, in a bounded number of series: routes come and go
//! by reload.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The most routes that have series of their own.
const MOST_ROUTES: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    route: Arc<str>,
    decision: &'static str,
}

/// The figures by route.
#[derive(Debug)]
pub(super) struct Routes {
    requests: Family<Decided, Counter>,
    /// Those that have series. None is taken back.
    named: RwLock<HashSet<Arc<str>>>,
    other: Arc<str>,
}

impl Routes {
    /// Enters them, at zero.
    pub(super) fn enter(to: &mut Registry) -> Self {
        let requests = Family::default();
        to.register(
            "agentport_route_requests",
            "Requests by named route, and by what was decided",
            Clone::clone(&requests),
        );
        Self {
            requests,
            named: RwLock::default(),
            other: "other".into(),
        }
    }

    /// So many requests by this route have ended.
    pub(super) fn finished(&self, route: &Arc<str>, decision: &'static str, count: u64) {
        let route = Arc::clone(if self.is_named(route) {
            route
        } else {
            &self.other
        });
        self.requests
            .get_or_create(&Decided { route, decision })
            .inc_by(count);
    }

    fn is_named(&self, route: &Arc<str>) -> bool {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        if named.contains(route) || named.len() >= MOST_ROUTES {
            return named.contains(route);
        }
        drop(named);
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        if named.len() < MOST_ROUTES {
            named.insert(Arc::clone(route));
        }
        named.contains(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_make_a_bounded_number_of_series() {
        let mut registry = Registry::default();
        let routes = Routes::enter(&mut registry);
        for number in (0..300).chain(0..300) {
            routes.finished(&format!("r{number:03}").into(), "allow", 1);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a text");
        for line in [
            "agentport_route_requests_total{route=\"r099\",decision=\"allow\"} 2",
            "agentport_route_requests_total{route=\"other\",decision=\"allow\"} 400",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("_total{").count(), MOST_ROUTES + 1);
    }
}
