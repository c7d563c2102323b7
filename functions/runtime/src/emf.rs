//! Measurements as CloudWatch's embedded metric format: a line of JSON in the log is a value of a metric.
//!
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};
use strongroom_connect::SystemClock;
use strongroom_fleet::metric::{Measurement, Meter, Metric, Unit};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::Clock;

/// The namespace of all metrics.
const NAMESPACE: &str = "Strongroom";
/// The dimension of metrics that each volume has.
const VOLUME: &str = "Volume";
/// The most values that one line may give of a metric.
const MAX_VALUES: usize = 100;

/// Writes measurements to standard output, where Lambda takes them for the log.
#[derive(Debug)]
pub struct EmbeddedMetrics;

impl Meter for EmbeddedMetrics {
    fn record(&self, measurements: &[Measurement]) {
        let mut out = std::io::stdout().lock();
        for line in lines(measurements, SystemClock.now()) {
            // A figure that is lost must not stop the work that it is about.
            let _ = writeln!(out, "{line}");
        }
    }
}

/// The lines that tell measurements: one for those without a volume, one for each volume; more where a metric has more
/// values than one line may give.
pub fn lines(measurements: &[Measurement], now: TimestampMs) -> Vec<String> {
    let mut groups: BTreeMap<Option<&str>, BTreeMap<Metric, Vec<f64>>> = BTreeMap::new();
    for measurement in measurements {
        let group = groups.entry(measurement.volume.as_deref()).or_default();
        group.entry(measurement.metric).or_default().push(measurement.value);
    }
    let mut lines = Vec::new();
    for (volume, metrics) in &groups {
        let most = metrics.values().map(Vec::len).max().unwrap_or(0);
        for part in 0..most.div_ceil(MAX_VALUES) {
            let values: BTreeMap<Metric, &[f64]> = metrics
                .iter()
                .filter_map(|(metric, values)| Some((*metric, values.chunks(MAX_VALUES).nth(part)?)))
                .collect();
            lines.push(line(*volume, &values, now));
        }
    }
    lines
}

fn line(volume: Option<&str>, metrics: &BTreeMap<Metric, &[f64]>, now: TimestampMs) -> String {
    let definitions: Vec<Value> =
        metrics.keys().map(|metric| json!({ "Name": metric.name(), "Unit": unit(metric.unit()) })).collect();
    let dimensions = if volume.is_some() { json!([[VOLUME]]) } else { json!([[]]) };
    let mut members = Map::new();
    members.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": now.0,
            "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": definitions }],
        }),
    );
    if let Some(volume) = volume {
        members.insert(VOLUME.to_owned(), Value::String(dimension(volume)));
    }
    for (metric, values) in metrics {
        let value = if let [one] = values { json!(one) } else { json!(values) };
        members.insert(metric.name().to_owned(), value);
    }
    Value::Object(members).to_string()
}

const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "Count",
        Unit::Bytes => "Bytes",
        Unit::Seconds => "Seconds",
        Unit::None => "None",
    }
}

/// A volume's name as the value of a dimension: CloudWatch takes ASCII alone, that does not begin with a colon.
fn dimension(volume: &str) -> String {
    let plain = |(at, c): (usize, char)| match c {
        ':' if at == 0 => c.escape_unicode().to_string(),
        ' '..='~' => c.to_string(),
        c => c.escape_unicode().to_string(),
    };
    volume.char_indices().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a line against the structure that the specification asks for, and gives it parsed.
    fn checked(line: &str) -> Value {
        assert!(!line.contains('\n') && line.len() < 256 << 10);
        let root: Value = serde_json::from_str(line).unwrap();
        let aws = root["_aws"].as_object().unwrap();
        assert!(aws["Timestamp"].is_u64());
        let directives = aws["CloudWatchMetrics"].as_array().unwrap();
        assert_eq!(aws.len(), 2, "{line}");
        for directive in directives {
            assert_eq!(directive["Namespace"], "Strongroom");
            let metrics = directive["Metrics"].as_array().unwrap();
            assert!((1..=100).contains(&metrics.len()));
            for metric in metrics {
                let (name, unit) = (metric["Name"].as_str().unwrap(), metric["Unit"].as_str().unwrap());
                assert!((1..=1024).contains(&name.len()) && name.is_ascii());
                assert!(["Count", "Bytes", "Seconds", "None"].contains(&unit), "{unit}");
                match &root[name] {
                    Value::Number(_) => {}
                    Value::Array(values) => {
                        assert!((1..=100).contains(&values.len()) && values.iter().all(Value::is_number));
                    }
                    other => panic!("{name}: {other}"),
                }
            }
            for set in directive["Dimensions"].as_array().unwrap() {
                let set = set.as_array().unwrap();
                assert!(set.len() <= 30);
                for key in set {
                    let value =
                        root[key.as_str().unwrap()].as_str().expect("a dimension's value is a string");
                    assert!((1..=1024).contains(&value.len()) && value.is_ascii() && !value.starts_with(':'));
                }
            }
        }
        root
    }

    #[test]
    fn a_line_is_what_the_specification_says() {
        let measurements =
            [Measurement::of(Metric::BackupsStarted, 3), Measurement::of(Metric::GcFreedBytes, 1 << 40)];
        let lines = lines(&measurements, TimestampMs(1_772_323_200_000));
        assert_eq!(lines.len(), 1);
        assert_eq!(
            checked(&lines[0]),
            json!({
                "_aws": {
                    "Timestamp": 1_772_323_200_000_u64,
                    "CloudWatchMetrics": [{
                        "Namespace": "Strongroom",
                        "Dimensions": [[]],
                        "Metrics": [
                            { "Name": "BackupsStarted", "Unit": "Count" },
                            { "Name": "GcFreedBytes", "Unit": "Bytes" },
                        ],
                    }],
                },
                "BackupsStarted": 3.0,
                "GcFreedBytes": 1_099_511_627_776.0,
            })
        );
    }

    #[test]
    fn volumes_have_lines_of_their_own_whatever_they_are_called() {
        let age = |volume| Measurement::of_volume(Metric::NewestBackupAgeSeconds, 60, volume);
        let measurements = [age("db"), age(":ä\u{7}"), Measurement::of(Metric::BackupsLate, 0)];
        let lines: Vec<Value> =
            lines(&measurements, TimestampMs(1)).iter().map(|line| checked(line)).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["BackupsLate"], 0.0);
        assert_eq!(lines[1]["Volume"], "\\u{3a}\\u{e4}\\u{7}");
        assert_eq!(lines[2]["Volume"], "db");
        assert_eq!(lines[2]["_aws"]["CloudWatchMetrics"][0]["Dimensions"], json!([["Volume"]]));
    }

    #[test]
    fn all_values_are_told_however_many_there_are() {
        let mut measurements: Vec<Measurement> =
            (0..250).map(|value| Measurement::of(Metric::BytesRead, value)).collect();
        measurements.push(Measurement::of(Metric::BackupsFailed, 1));
        let lines: Vec<Value> =
            lines(&measurements, TimestampMs(1)).iter().map(|line| checked(line)).collect();
        let lens: Vec<usize> = lines.iter().map(|line| line["BytesRead"].as_array().unwrap().len()).collect();
        assert_eq!(lens, [100, 100, 50]);
        assert_eq!(lines.iter().filter(|line| line.get("BackupsFailed").is_some()).count(), 1);
        assert!(super::lines(&[], TimestampMs(1)).is_empty());
        for metric in Metric::ALL {
            checked(&super::lines(&[Measurement::of(metric, 1)], TimestampMs(1))[0]);
        }
    }
}
