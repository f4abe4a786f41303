//! The rules, against what Istio's own command leaves for the same options.

use clap::Parser;

use super::rules::cleanup_input;
use super::{Family, IptablesError, IptablesOptions, Plan, has_global_ipv6};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: IptablesOptions,
}

fn options(line: &str) -> IptablesOptions {
    // As a shell would: '' is an empty argument.
    let words = line.split_whitespace().map(|word| if word == "''" { "" } else { word });
    Line::try_parse_from(std::iter::once("istio-iptables").chain(words)).unwrap().options
}

/// What istiod's template passes to a pod without annotations.
const DEFAULT: &str = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020 --log_output_level=default:info";

#[test]
fn default_options_give_the_documented_rules() {
    let plan = Plan::new(&options(DEFAULT), "nameserver 10.96.0.10\n").unwrap();
    let expected = "\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
";
    assert_eq!(plan.restore_input(Family::V4, ""), expected);
}

#[test]
fn annotations_and_dns_capture_give_the_documented_rules() {
    let line =
        "-i 10.96.0.0/12,10.244.0.0/16 -x 10.99.0.0/16 -b * -d 15090,7777 -o 3306 -q 8443 --redirect-dns";
    let plan = Plan::new(&options(line), "search a.b\nnameserver 10.96.0.10\nnameserver fd00::10\n").unwrap();
    let rules = plan.restore_input(Family::V4, "");
    let output: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A ISTIO_OUTPUT ")).collect();
    assert_eq!(
        output,
        [
            "-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN",
            "-A ISTIO_OUTPUT -p udp --dport 3306 -j RETURN",
            "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN",
            "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS",
            "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
            "-A ISTIO_OUTPUT -d 10.99.0.0/16 -j RETURN",
            "-A ISTIO_OUTPUT -p tcp --dport 8443 -j ISTIO_REDIRECT",
            "-A ISTIO_OUTPUT -d 10.96.0.0/12 -j ISTIO_REDIRECT",
            "-A ISTIO_OUTPUT -d 10.244.0.0/16 -j ISTIO_REDIRECT",
        ]
    );
    for rule in [
        "-A ISTIO_OUTPUT_DNS -p tcp --dport 53 -d 10.96.0.10 -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 10.96.0.10 -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2",
        "-A ISTIO_INBOUND -p udp --sport 53 -s 10.96.0.10 -j CT --zone 1",
    ] {
        assert!(rules.contains(rule), "{rule}\n{rules}");
    }
    assert!(!rules.contains("fd00"), "{rules}");
    let rules = plan.restore_input(Family::V6, "");
    assert!(rules.contains("-d fd00::10") && !rules.contains("10.96"), "{rules}");
}

#[test]
fn nothing_is_captured_unless_asked_for() {
    let rules = Plan::new(&options(""), "").unwrap().restore_input(Family::V4, "");
    assert!(!rules.contains("PREROUTING") && !rules.contains("-j ISTIO_REDIRECT"), "{rules}");
    let rules = Plan::new(&options("-b 80,81 -c eth1 -k vm0 -i * --drop-invalid"), "")
        .unwrap()
        .restore_input(Family::V4, "");
    for rule in [
        "-A ISTIO_INBOUND -p tcp --dport 81 -j ISTIO_IN_REDIRECT",
        "-A PREROUTING -i eth1 -j RETURN",
        "-I PREROUTING -i vm0 -j ISTIO_REDIRECT",
        "-A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP",
    ] {
        assert!(rules.contains(rule), "{rule}\n{rules}");
    }
}

#[test]
fn second_run_takes_the_first_one_s_jumps_away() {
    let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n-A OUTPUT -j DOCKER\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
    let rules = Plan::new(&options(DEFAULT), "").unwrap().restore_input(Family::V4, saved);
    assert_eq!(rules.matches("-D ").count(), 1, "{rules}");
    let (delete, append) = (
        rules.find("-D OUTPUT -j ISTIO_OUTPUT\n").unwrap(),
        rules.find("-A OUTPUT -j ISTIO_OUTPUT\n").unwrap(),
    );
    assert!(delete < append, "{rules}");
    assert_eq!(
        cleanup_input(saved),
        "*nat\n-D OUTPUT -j ISTIO_OUTPUT\n-F ISTIO_OUTPUT\n-X ISTIO_OUTPUT\nCOMMIT\n"
    );
}

#[test]
fn errors_name_the_option() {
    for (line, expected) in [
        ("-m TPROXY", "-m"),
        ("-p 99999", "-p"),
        ("-b 80,x", "-b"),
        ("-i 10.0.0.0/33", "-i"),
        ("-x nowhere", "-x"),
        ("-u root", "-u"),
        ("-c a;b", "-c"),
    ] {
        let error = Plan::new(&options(line), "").unwrap_err();
        assert!(
            matches!(&error, IptablesError::Option { option, .. } if *option == expected),
            "{line}: {error}"
        );
    }
}

#[test]
fn only_global_addresses_mean_ipv6() {
    assert!(!has_global_ipv6(
        "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000 02 40 20 80 eth0\n"
    ));
    assert!(has_global_ipv6("fd000000000000000000000000000005 02 40 00 80     eth0\n"));
}
