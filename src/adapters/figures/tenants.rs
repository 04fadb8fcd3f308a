//! Requests and bytes by tenant, in a bounded number of series: tokens name
//! tenants, so whoever issues tokens could else make as many as he likes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use crate::audit::{AuditEvent, AuditRecord};
use crate::egress::TenantId;

/// The most tenants that have series of their own.
const MOST_TENANTS: usize = 100;
/// Who has none of his own, and who names no tenant.
const OTHER: &str = "other";
const NONE: &str = "none";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    tenant: Arc<str>,
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moved {
    tenant: Arc<str>,
    direction: &'static str,
}

/// The figures by tenant.
#[derive(Debug)]
pub(super) struct Tenants {
    requests: Family<Decided, Counter>,
    bytes: Family<Moved, Counter>,
    /// The labels of tenants that have had a document, at most so many. None is
    /// taken back, so that a series goes on where a document comes again.
    named: RwLock<HashMap<TenantId, Arc<str>>>,
    other: Arc<str>,
    none: Arc<str>,
}

impl Tenants {
    /// Enters them, at zero.
    pub(super) fn enter(to: &mut Registry) -> Self {
        let (requests, bytes) = (Family::default(), Family::default());
        to.register(
            "agentport_tenant_requests",
            "Requests and tunnels, by tenant and by what was decided",
            Clone::clone(&requests),
        );
        to.register_with_unit(
            "agentport_tenant",
            "Bytes of ended requests and tunnels, by tenant",
            Unit::Bytes,
            Clone::clone(&bytes),
        );
        Self {
            requests,
            bytes,
            named: RwLock::default(),
            other: OTHER.into(),
            none: NONE.into(),
        }
    }

    /// These tenants have documents.
    pub(super) fn have_documents<'a>(&self, tenants: impl Iterator<Item = &'a TenantId>) {
        let mut tenants: Vec<&TenantId> = tenants.collect();
        // The same ones after a restart.
        tenants.sort_unstable();
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        for tenant in tenants {
            if named.len() < MOST_TENANTS && !named.contains_key(tenant) {
                named.insert(tenant.clone(), tenant.as_str().into());
            }
        }
    }

    /// A request or tunnel has ended.
    pub(super) fn finished(&self, record: &AuditRecord, decision: &'static str) {
        let tenant = match &record.tenant {
            None => &self.none,
            Some(tenant) => {
                let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
                &Arc::clone(named.get(tenant).unwrap_or(&self.other))
            }
        };
        if record.event != AuditEvent::TunnelClosed {
            let tenant = Arc::clone(tenant);
            let label = Decided { tenant, decision };
            self.requests.get_or_create(&label).inc_by(record.count);
        }
        for (direction, bytes) in [("up", record.bytes_up), ("down", record.bytes_down)] {
            if bytes > 0 {
                let tenant = Arc::clone(tenant);
                let label = Moved { tenant, direction };
                self.bytes.get_or_create(&label).inc_by(bytes);
            }
        }
    }
}
