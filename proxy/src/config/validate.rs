//! Checks across resources: the clusters that routes name must be there where `validate_clusters` asks for it.
//! Source: `RouteConfiguration.validate_clusters`.

use super::filter::NetworkFilter;
use super::hcm::RouteSource;
use super::listener::Listener;
use super::proto::ConfigError;
use super::route::{Action, ClusterChoice, ClusterOrHeader, Mirror, RouteConfig};

/// Checks the clusters of a route configuration.
///
/// # Errors
/// The first unknown cluster, with its place.
pub fn routes(
    resource: &str,
    prefix: &str,
    config: &RouteConfig,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), ConfigError> {
    if !config.validate_clusters {
        return Ok(());
    }
    let unknown = |path: String, name: &str| {
        Err(ConfigError {
            resource: resource.to_owned(),
            path: format!("{prefix}{path}"),
            reason: format!("unknown cluster '{name}'"),
        })
    };
    let mirrors = |path: &str, list: &[Mirror]| {
        for (i, m) in list.iter().enumerate() {
            match &m.cluster {
                ClusterOrHeader::Cluster(name) if !known(name) => {
                    return unknown(format!("{path}request_mirror_policies[{i}].cluster"), name);
                }
                _ => {}
            }
        }
        Ok(())
    };
    mirrors("", &config.mirrors)?;
    for (i, host) in config.virtual_hosts.iter().enumerate() {
        mirrors(&format!("virtual_hosts[{i}]."), &host.mirrors)?;
        for (j, route) in host.routes.iter().enumerate() {
            let Action::Forward(f) = &route.action else { continue };
            let path = format!("virtual_hosts[{i}].routes[{j}].route.");
            mirrors(&path, &f.mirrors)?;
            match &f.cluster {
                ClusterChoice::Cluster(name) if !known(name) => {
                    return unknown(format!("{path}cluster"), name);
                }
                ClusterChoice::Weighted(w) => {
                    for (k, c) in w.clusters.iter().enumerate() {
                        if c.cluster_header.is_none() && !known(&c.name) {
                            return unknown(format!("{path}weighted_clusters.clusters[{k}].name"), &c.name);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Checks the route configurations that stand in a listener.
///
/// # Errors
/// As [`routes`].
pub fn listener(listener: &Listener, known: &dyn Fn(&str) -> bool) -> Result<(), ConfigError> {
    let resource = format!("listener '{}'", listener.name);
    let chains = listener.filter_chains.iter().enumerate().map(|(i, c)| (format!("filter_chains[{i}]"), c));
    for (path, chain) in
        chains.chain(listener.default_chain.iter().map(|c| ("default_filter_chain".to_owned(), c)))
    {
        for (i, filter) in chain.filters.iter().enumerate() {
            if let NetworkFilter::Hcm(hcm) = filter
                && let RouteSource::Static(config) = &hcm.routes
            {
                routes(&resource, &format!("{path}.filters[{i}].typed_config.route_config."), config, known)?;
            }
        }
    }
    Ok(())
}
