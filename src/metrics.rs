//! Metrics for Prometheus.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    engine::{Engine, Health},
    gpu::{self, Gpus},
    model::gpu::Reading,
    pod::Pods,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    user: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnePodLabels {
    user: String,
    pod: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuLabels {
    gpu: String,
    index: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuPodLabels {
    gpu: String,
    index: u32,
    user: String,
    pod: String,
}

type Number = Gauge<f64, AtomicU64>;

/// Gauges by pod and by GPU, set at each scrape.
#[derive(Clone, Default)]
struct Readings {
    pod_cpu_seconds: Family<OnePodLabels, Number>,
    pod_memory: Family<OnePodLabels, Number>,
    pod_processes: Family<OnePodLabels, Number>,
    pod_disk_read: Family<OnePodLabels, Number>,
    pod_disk_written: Family<OnePodLabels, Number>,
    gpu_known: Family<GpuLabels, Gauge>,
    gpu_utilization: Family<GpuLabels, Number>,
    gpu_memory: Family<GpuLabels, Number>,
    gpu_memory_total: Family<GpuLabels, Number>,
    gpu_power: Family<GpuLabels, Number>,
    gpu_temperature: Family<GpuLabels, Number>,
    gpu_pod_memory: Family<GpuPodLabels, Number>,
    gpu_pod_processes: Family<GpuPodLabels, Gauge>,
    gpu_pod_utilization: Family<GpuPodLabels, Number>,
}

impl Readings {
    fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "pod_cpu",
            "CPU time since the start of the pod",
            Unit::Seconds,
            self.pod_cpu_seconds.clone(),
        );
        registry.register_with_unit("pod_memory", "Memory in use", Unit::Bytes, self.pod_memory.clone());
        registry.register("pod_processes", "Processes and threads", self.pod_processes.clone());
        let read = "Read from disks since the start of the pod";
        registry.register_with_unit("pod_disk_read", read, Unit::Bytes, self.pod_disk_read.clone());
        let written = "Written to disks since the start of the pod";
        registry.register_with_unit("pod_disk_written", written, Unit::Bytes, self.pod_disk_written.clone());
        registry.register("gpu_known", "1 while the GPU can be read", self.gpu_known.clone());
        registry.register(
            "gpu_utilization_percent",
            "Share of time in which a kernel ran",
            self.gpu_utilization.clone(),
        );
        registry.register_with_unit("gpu_memory", "GPU memory in use", Unit::Bytes, self.gpu_memory.clone());
        registry.register_with_unit("gpu_memory_total", "Total GPU memory", Unit::Bytes, self.gpu_memory_total.clone());
        registry.register("gpu_power_watts", "Power drawn", self.gpu_power.clone());
        registry.register_with_unit("gpu_temperature", "Temperature", Unit::Celsius, self.gpu_temperature.clone());
        registry.register_with_unit("gpu_pod_memory", "GPU memory by pod", Unit::Bytes, self.gpu_pod_memory.clone());
        registry.register("gpu_pod_processes", "Processes on the GPU by pod", self.gpu_pod_processes.clone());
        registry.register(
            "gpu_pod_utilization_percent",
            "Share of time in which a kernel of the pod ran, as far as the driver reports it",
            self.gpu_pod_utilization.clone(),
        );
    }

    fn clear(&self) {
        self.pod_cpu_seconds.clear();
        self.pod_memory.clear();
        self.pod_processes.clear();
        self.pod_disk_read.clear();
        self.pod_disk_written.clear();
        self.gpu_known.clear();
        self.gpu_utilization.clear();
        self.gpu_memory.clear();
        self.gpu_memory_total.clear();
        self.gpu_power.clear();
        self.gpu_temperature.clear();
        self.gpu_pod_memory.clear();
        self.gpu_pod_processes.clear();
        self.gpu_pod_utilization.clear();
    }

    fn read_pods(&self, pods: &Pods) {
        for pod in pods.list_all() {
            let Some(sample) = pods.sample(&pod) else { continue };
            let labels = OnePodLabels { user: pod.user.to_string(), pod: pod.container_name.clone() };
            self.pod_cpu_seconds.get_or_create(&labels).set(sample.cpu_seconds);
            self.pod_memory.get_or_create(&labels).set(sample.memory_bytes as f64);
            self.pod_processes.get_or_create(&labels).set(sample.pids as f64);
            if let Some(disk) = sample.disk {
                self.pod_disk_read.get_or_create(&labels).set(disk.read as f64);
                self.pod_disk_written.get_or_create(&labels).set(disk.written as f64);
            }
        }
    }

    fn read_gpus(&self, gpus: &Gpus) {
        for device in &gpus.snapshot().devices {
            let labels = GpuLabels { gpu: device.uuid.0.clone(), index: device.index };
            let Reading { memory_total, memory_used, utilization, power, temperature, .. } = match &device.health {
                gpu::Health::Known(reading) => reading.clone(),
                // Unknown is absent, never zero.
                gpu::Health::Unknown { .. } => {
                    self.gpu_known.get_or_create(&labels).set(0);
                    continue;
                }
            };
            self.gpu_known.get_or_create(&labels).set(1);
            for (family, value) in [
                (&self.gpu_memory, memory_used.map(|bytes| bytes as f64)),
                (&self.gpu_memory_total, memory_total.map(|bytes| bytes as f64)),
                (&self.gpu_utilization, utilization.map(f64::from)),
                (&self.gpu_power, power),
                (&self.gpu_temperature, temperature.map(f64::from)),
            ] {
                if let Some(value) = value {
                    family.get_or_create(&labels).set(value);
                }
            }
            for process in &device.processes {
                let gpu::Owner::Pod { user, name, .. } = &*process.owner else { continue };
                let labels = GpuPodLabels {
                    gpu: device.uuid.0.clone(),
                    index: device.index,
                    user: user.to_string(),
                    pod: name.clone(),
                };
                self.gpu_pod_memory.get_or_create(&labels).inc_by(process.gpu_memory.unwrap_or(0) as f64);
                self.gpu_pod_processes.get_or_create(&labels).inc();
                if let Some(percent) = process.utilization {
                    self.gpu_pod_utilization.get_or_create(&labels).inc_by(f64::from(percent));
                }
            }
        }
    }
}

/// Counters that live as long as the daemon, and gauges that are set at each scrape. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    pods: Family<PodLabels, Gauge>,
    docker_up: Gauge,
    inventory_age: Number,
    gpu_polls: Gauge,
    readings: Readings,
    /// One reader at a time: the gauges are shared.
    reading: Arc<Mutex<()>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pody");
        let requests = Family::default();
        // 0.1 ms to 10 s.
        let request_seconds = Histogram::new([0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0]);
        let (pods, docker_up, inventory_age) = (Family::default(), Gauge::default(), Gauge::default());
        registry.register("requests", "Requests answered", requests.clone());
        registry.register_with_unit("request", "Time to answer a request", Unit::Seconds, request_seconds.clone());
        registry.register("pods", "Pods by owner and status", pods.clone());
        registry.register("docker_up", "1 while Docker answers", docker_up.clone());
        registry.register_with_unit(
            "inventory_age",
            "Time since the containers were listed",
            Unit::Seconds,
            inventory_age.clone(),
        );
        let gpu_polls = Gauge::default();
        registry.register("gpu_polls", "Polls of the GPUs since the start of the daemon", gpu_polls.clone());
        let readings = Readings::default();
        readings.register(&mut registry);
        let reading = Arc::default();
        Self {
            readings,
            registry: Arc::new(registry),
            requests,
            request_seconds,
            pods,
            docker_up,
            inventory_age,
            gpu_polls,
            reading,
        }
    }
}

impl Metrics {
    pub fn count(&self, route: &'static str, status: u16, seconds: f64) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
        self.request_seconds.observe(seconds);
    }

    /// All metrics in the OpenMetrics text format.
    pub fn render(&self, pods: &Pods, gpus: &Gpus, engine: &Engine) -> String {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.pods.clear();
        for pod in pods.list_all() {
            let view = pods.view(&pod);
            self.pods.get_or_create(&PodLabels { user: view.user.to_string(), status: view.status.to_string() }).inc();
        }
        self.readings.clear();
        self.readings.read_pods(pods);
        self.readings.read_gpus(gpus);
        self.gpu_polls.set(gpus.polls());
        self.docker_up.set(i64::from(engine.health() == Health::Up));
        self.inventory_age.set(engine.inventory().age().map_or(-1.0, |age| age.as_secs_f64()));
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# not complete");
        }
        text
    }
}
