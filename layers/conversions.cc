#include "layers/conversions.h"

#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <thread>

#include "base/status.h"
#include "base/ttrpc/thread.h"

namespace lamina::layers {
namespace {

using std::chrono::steady_clock;

constexpr size_t kStackBytes = 256 * 1024;

size_t AtATime(size_t most) {
  return most != 0 ? most : std::max<size_t>(2, std::thread::hardware_concurrency());
}

}  // namespace

// Guarded by the mutex of all.
struct Conversions::Job {
  explicit Job(std::string k) : key(std::move(k)) {}
  const std::string key;
  DomainCounts tickets;
  bool started = false, done = false;
  absl::Status error;
  LayerImagePtr image;
  std::stop_source stop;
};

Conversions::Conversions(size_t most) : limits_{.most = AtATime(most)} {}

Conversions::~Conversions() {
  std::map<std::string, std::shared_ptr<Job>> jobs;
  {
    MutexLock lock(mutex_);
    jobs = jobs_;
  }
  for (const auto& [key, job] : jobs) job->stop.request_stop();
  jobs.clear();
  MutexLock lock(mutex_);
  while (threads_ > 0) changed_.Wait(mutex_);
}

void Conversions::WakeAll() {
  MutexLock lock(mutex_);
  changed_.NotifyAll();
}

std::unique_ptr<Conversions::Ticket> Conversions::Join(const std::string& source_key,
                                                       const std::string& domain) {
  MutexLock lock(mutex_);
  std::shared_ptr<Job>& job = jobs_[source_key];
  if (job == nullptr) job = std::make_shared<Job>(source_key);
  ++job->tickets[domain];
  changed_.NotifyAll();  // what waits for its turn may have one now
  return std::unique_ptr<Ticket>(new Ticket(*this, job, domain));
}

Conversions::Ticket::~Ticket() { all_.Leave(job_, domain_); }

void Conversions::Leave(const std::shared_ptr<Job>& job, const std::string& domain) {
  {
    MutexLock lock(mutex_);
    const auto calls = job->tickets.find(domain);
    if (--calls->second == 0) job->tickets.erase(calls);
    changed_.NotifyAll();
    if (!job->tickets.empty()) return;
    const auto it = jobs_.find(job->key);
    if (it != jobs_.end() && it->second == job) jobs_.erase(it);
    if (!job->started || job->done) return;
  }
  // Nobody waits for it any more. What waits for its turn is woken by its own callback.
  job->stop.request_stop();
}

bool Conversions::idle() const {
  MutexLock lock(mutex_);
  return jobs_.empty();
}

absl::StatusOr<LayerImagePtr> Conversions::Ticket::Get(const Patience& patience, std::string_view what,
                                                       Work work) {
  std::stop_callback wake(patience.stop, [this] { all_.WakeAll(); });
  MutexLock lock(all_.mutex_);
  if (!job_->started) {
    job_->started = began_ = true;
    ++all_.threads_;
    const absl::Status status =
        ttrpc::StartThread(kStackBytes, [&all = all_, job = job_, work = std::move(work)]() mutable {
          all.Run(std::move(job), std::move(work));
        });
    if (!status.ok()) {
      --all_.threads_;
      job_->done = true;
      job_->error = Annotate(status, what);
      const auto it = all_.jobs_.find(job_->key);
      if (it != all_.jobs_.end() && it->second == job_) all_.jobs_.erase(it);
      all_.changed_.NotifyAll();
    }
  }
  while (!job_->done) {
    RETURN_IF_ERROR(patience.Check(what));
    if (patience.deadline == steady_clock::time_point::max()) {
      all_.changed_.Wait(all_.mutex_);
    } else {
      all_.changed_.WaitUntil(all_.mutex_, patience.deadline);
    }
  }
  if (!job_->error.ok()) return job_->error;
  return job_->image;
}

void Conversions::Run(std::shared_ptr<Job> job, Work work) {
  absl::StatusOr<LayerImagePtr> made = work(job->stop.get_token());
  work = nullptr;
  {
    MutexLock lock(mutex_);
    job->done = true;
    if (made.ok()) {
      job->image = *std::move(made);
    } else {
      // Who asks from now on tries again.
      job->error = made.status();
      const auto it = jobs_.find(job->key);
      if (it != jobs_.end() && it->second == job) jobs_.erase(it);
    }
    changed_.NotifyAll();
  }
  made = LayerImagePtr();
  job.reset();  // where nobody waited, this removes the image's file
  MutexLock lock(mutex_);
  --threads_;
  changed_.NotifyAll();
}

bool Conversions::IsNext(uint64_t number) const {
  std::vector<const DomainCounts*> waiting, under_way;
  for (const auto& [arrival, job] : waiting_) waiting.push_back(&job->tickets);
  for (const auto& [file, one] : under_way_) under_way.push_back(&one.job->tickets);
  const std::optional<size_t> next = NextTurn(waiting, under_way, limits_);
  return next && std::next(waiting_.begin(), static_cast<ptrdiff_t>(*next))->first == number;
}

absl::StatusOr<Conversions::Turn> Conversions::Begin(const Request& request, const std::stop_token& stop) {
  std::stop_callback wake(stop, [this] { WakeAll(); });
  MutexLock lock(mutex_);
  const auto known = jobs_.find(request.source_key);
  const std::shared_ptr<Job> job =
      known != jobs_.end() ? known->second : std::make_shared<Job>(request.source_key);
  const uint64_t number = arrivals_++;
  waiting_[number] = job;
  while (!stop.stop_requested() && !IsNext(number)) changed_.Wait(mutex_);
  waiting_.erase(number);
  changed_.NotifyAll();  // the next one may begin too
  if (stop.stop_requested()) {
    return MakeStatus(absl::StatusCode::kCancelled, "layer {}: not converted: nobody waits for it",
                      request.source);
  }
  under_way_[request.file] = {request.source, job, steady_clock::now()};
  return Turn(*this, request.file);
}

Conversions::Turn::~Turn() {
  if (file_.empty()) return;
  MutexLock lock(all_.mutex_);
  all_.under_way_.erase(file_);
  all_.changed_.NotifyAll();
}

std::vector<ConversionInfo> Conversions::under_way() const {
  std::map<std::string, UnderWay> now;
  {
    MutexLock lock(mutex_);
    now = under_way_;
  }
  std::vector<ConversionInfo> all;
  for (const auto& [file, one] : now) {
    struct stat info {};
    const bool there = stat(file.c_str(), &info) == 0;
    const double seconds = std::chrono::duration<double>(steady_clock::now() - one.start).count();
    all.push_back({one.source, seconds, there ? static_cast<uint64_t>(info.st_size) : 0});
  }
  return all;
}

}  // namespace lamina::layers
