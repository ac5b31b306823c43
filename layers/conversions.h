// Images under way: one at a time for a layer, whoever asks for it, no more at a time than the node allows,
// and turns that are shared between the domains (layers/fair_turns.h).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "layers/fair_turns.h"
#include "layers/layer_image.h"
#include "layers/layer_types.h"
#include "layers/patience.h"

namespace lamina::layers {

// Thread-safe. An image is made on a thread of its own, for as long as anybody who asked is left: who gives
// up leaves it to the others, the last one ends it.
class Conversions {
 public:
  // Ends soon once `stop` is requested, and leaves nothing.
  using Work = std::function<absl::StatusOr<LayerImagePtr>(const std::stop_token& stop)>;

  // `most` at a time, and extra ones for domains that have none; 0: one for each core, at least two.
  explicit Conversions(size_t most);
  // Ends what is under way, and waits for it.
  ~Conversions();

 private:
  struct Job;

 public:
  // One call's interest in a layer. While anyone has one, an image that was made is kept for the others.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // The layer's image; `work` makes it, unless another ticket's is under way or done. Its error is that of
    // all who wait. The caller's own end: Cancelled, DeadlineExceeded "<what>: …".
    absl::StatusOr<LayerImagePtr> Get(const Patience& patience, std::string_view what, Work work);
    // Get began the work itself.
    bool began() const { return began_; }

   private:
    friend class Conversions;
    Ticket(Conversions& all, std::shared_ptr<Job> job, std::string domain)
        : all_(all), job_(std::move(job)), domain_(std::move(domain)) {}
    Conversions& all_;
    std::shared_ptr<Job> job_;
    const std::string domain_;
    bool began_ = false;
  };
  // `domain`: in whose share of the turns it is waited for.
  std::unique_ptr<Ticket> Join(const std::string& source_key, const std::string& domain);
  // Nobody has a ticket.
  bool idle() const;

  // A turn to convert; it ends with the object.
  class Turn {
   public:
    Turn(Turn&& other) noexcept : all_(other.all_), file_(std::exchange(other.file_, "")) {}
    ~Turn();

   private:
    friend class Conversions;
    Turn(Conversions& all, std::string file) : all_(all), file_(std::move(file)) {}
    Conversions& all_;
    std::string file_;
  };
  struct Request {
    std::string source_key;  // that of the tickets whose domains wait for it
    std::string source;      // for people
    std::string file;        // what is written, for progress
  };
  // Waits for one. Cancelled when `stop` is requested first.
  absl::StatusOr<Turn> Begin(const Request& request, const std::stop_token& stop);
  std::vector<ConversionInfo> under_way() const;

 private:
  struct UnderWay {
    std::string source;
    std::shared_ptr<Job> job;
    std::chrono::steady_clock::time_point start;
  };

  void Run(std::shared_ptr<Job> job, Work work);
  void Leave(const std::shared_ptr<Job>& job, const std::string& domain);
  // Whether the turn of who waits as `number` has come.
  bool IsNext(uint64_t number) const REQUIRES(mutex_);
  void WakeAll();

  const TurnLimits limits_;
  mutable Mutex mutex_;  // none is taken under it
  CondVar changed_;
  std::map<std::string, std::shared_ptr<Job>> jobs_ GUARDED_BY(mutex_);  // by source key
  std::map<std::string, UnderWay> under_way_ GUARDED_BY(mutex_);         // by file
  std::map<uint64_t, std::shared_ptr<Job>> waiting_ GUARDED_BY(mutex_);  // for a turn, by arrival
  uint64_t arrivals_ GUARDED_BY(mutex_) = 0;
  size_t threads_ GUARDED_BY(mutex_) = 0;
};

}  // namespace lamina::layers
